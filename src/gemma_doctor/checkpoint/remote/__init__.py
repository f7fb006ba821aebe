"""Checkpoints that are elsewhere: Hub repositories, web servers and object stores, read in ranges."""
