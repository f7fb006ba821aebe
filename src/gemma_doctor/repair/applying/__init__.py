"""A plan to a new folder.

To be read in this order:

* what it will be: schedule, outfiles, config_text, sidecars, outline
* what is refused: place, rehearsal
* how it is written: workspace, digest, streams, crew
* how it ends: manifest, proof
* all of it: apply
"""
