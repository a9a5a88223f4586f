"""Where the pictures come from, and which client holds which of them.

One file a kind of source (:mod:`.embedded_digits`, :mod:`.archives`, :mod:`.torchvision_digits`),
each with one function that returns a :class:`~fedpw_flwr.data.images.DomainCollection`;
:mod:`.partition` divides its training pictures among clients.

**To add a data set**, write one module with a function that returns a ``DomainCollection``, and one
file ``conf/dataset/NAME.yaml``::

    _target_: your_package.your_module.your_function
    _convert_: all
    domains: [name_of_domain_1, name_of_domain_2]
    your_option: 1

and run ``fedpw dataset=NAME partition=by_domain``. The key ``domains`` lists the names in client
order, so that the number of clients is known before any picture is read; a key which holds a folder
is called ``folder``, so that the command can make it absolute.
"""
