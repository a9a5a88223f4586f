"""Where the data come from, and which client holds which of them.

:mod:`.named_sets` reads the field's data sets by the names of their domains, :mod:`.archives` your
own, once a machine (:mod:`.cache`). :mod:`.embedded_digits` needs no files, :mod:`.heart_disease`
has no images. Each gives a :class:`~.examples.DomainCollection`, whose training examples
:mod:`.partition` divides among clients.

**To add a data set**, write one module with a function that returns a ``DomainCollection``, and one
file ``conf/dataset/NAME.yaml``::

    name: NAME
    _target_: your_package.your_module.your_function
    _convert_: all
    domains: [name_of_domain_1, name_of_domain_2]
    your_option: 1

and run ``fedpw dataset=NAME partition=by_domain``. The key ``domains`` lists the names in client
order, so that the number of clients is known before any data are read; a `seed` that is null gets
the run's, for a division into training and test of each run's own; a key which holds a folder is
called ``folder``, or ends in ``_folder``, so that the command can make it absolute. ``name`` is
a label and no argument of the function.
"""
