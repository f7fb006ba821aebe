"""What a pass has to go on beside the findings.

To be read in this order: case (what a pass is and sees), calibration, windows, outputs, rescaled (what runs through a
network, before and after), losses, gains (what storing other numbers would lose), scaling (what passes that scale
hold to).
"""
