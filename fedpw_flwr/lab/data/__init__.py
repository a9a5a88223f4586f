"""Where the data come from, and which client holds which of them.

:mod:`.named_sets` reads the field's data sets by the names of their domains, :mod:`.archives` your
own, once a machine (:mod:`.cache`). :mod:`.embedded_digits` needs no files, :mod:`.heart_disease`
has no images. Each gives a :class:`~.examples.DomainCollection`, whose training examples
:mod:`.partition` divides among clients.

"Add a dataset" in ``docs/architecture.md`` tells how to write one.
"""
