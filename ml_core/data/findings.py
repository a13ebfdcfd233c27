"""The 14 CheXpert findings: their names, in the order of every vector, and the NIH names that mean them."""

NO_FINDING = "No Finding"
FINDINGS: tuple[str, ...] = (
    NO_FINDING,
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)  # Irvin et al., CheXpert, AAAI 2019
INDEX: dict[str, int] = {name: index for index, name in enumerate(FINDINGS)}

# NIH ChestX-ray14's names (Wang et al., CVPR 2017). Emphysema, Fibrosis and Hernia have no CheXpert counterpart: a
# film with one of them is not "No Finding", and nothing is claimed about it.
NIH_TO_CHEXPERT: dict[str, str] = {
    "No Finding": NO_FINDING,
    "Cardiomegaly": "Cardiomegaly",
    "Infiltration": "Lung Opacity",
    "Mass": "Lung Lesion",
    "Nodule": "Lung Lesion",
    "Edema": "Edema",
    "Consolidation": "Consolidation",
    "Pneumonia": "Pneumonia",
    "Atelectasis": "Atelectasis",
    "Pneumothorax": "Pneumothorax",
    "Effusion": "Pleural Effusion",
    "Pleural_Thickening": "Pleural Other",
}
NIH_WITHOUT_COUNTERPART: tuple[str, ...] = ("Emphysema", "Fibrosis", "Hernia")


def chexpert_names(labels: str) -> frozenset[str]:
    """CheXpert names for `labels` separated by `|`, given in NIH's or CheXpert's own names; ValueError if unknown."""
    names = set()
    for label in filter(None, (part.strip() for part in labels.split("|"))):
        if label in INDEX:
            names.add(label)
        elif label in NIH_TO_CHEXPERT:
            names.add(NIH_TO_CHEXPERT[label])
        elif label not in NIH_WITHOUT_COUNTERPART:
            raise ValueError(f"unknown finding {label!r}")
    return frozenset(names)
