"""Pages of radiology."""
