"""Pure functions of radiology: what a DICOM file is, its pixels, the order of the reading list, what is signed."""
