"""The command `fedpw-compare`: tables and plots of any set of finished runs.

``runs`` finds them, ``settings`` puts together what can be compared, ``figures`` and ``statistics``
turn rounds into figures, ``tables``, ``markdown`` and ``plots`` show them.
"""
