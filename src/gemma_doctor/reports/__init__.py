"""How a report is shown: to people at a terminal, and to machines as JSON. Renderers draw and decide nothing."""
