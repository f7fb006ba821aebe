"""The hot loops: statistics of a tensor's bytes, at the speed of memory."""
