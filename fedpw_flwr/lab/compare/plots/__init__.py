"""The plots of a comparison; all are made of the panels of `lab.plots.panels`."""
