"""The command `fedpw-compare`: tables and plots of any set of finished runs.

``runs`` finds them, ``settings`` puts together what can be compared, ``history`` and ``statistics``
turn rounds into figures, the rest writes them down.
"""
