"""The plots of a comparison, a file each; all are made of the panels of `lab.plots.panels`."""
