"""Writes of radiology: intake of files, drafts, reports."""
