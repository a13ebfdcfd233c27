"""Commands of radiology."""
