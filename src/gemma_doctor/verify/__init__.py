"""Running a model in float16 and watching every operation."""
