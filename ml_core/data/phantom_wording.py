"""The phrase bank of simulated reports. {side}, {size} and {in} are filled in; [one|both] picks by side."""

POSITIVE: dict[str, tuple[str, ...]] = {
    "Lung Opacity": (
        "There is hazy airspace opacity {in}.",
        "Ill-defined opacity is seen {in}.",
        "Patchy opacities are present {in}.",
        "There are interstitial and airspace infiltrates {in}.",
    ),
    "Consolidation": (
        "There is dense consolidation {in}.",
        "Focal airspace consolidation is present {in}.",
        "Consolidation with air bronchograms {in}.",
    ),
    "Pneumonia": (
        "Patchy airspace disease {in} is consistent with pneumonia.",
        "Appearances {in} are compatible with pneumonia.",
        "There is pneumonia {in}.",
    ),
    "Atelectasis": (
        "There is {size} atelectasis {in}.",
        "Linear atelectasis is noted {in}.",
        "Subsegmental atelectasis {in}.",
        "Bandlike atelectasis with volume loss {in}.",
    ),
    "Edema": (
        "There is {size} pulmonary edema.",
        "Perihilar haze and vascular indistinctness reflect {size} pulmonary edema.",
        "Findings of {size} interstitial edema are present.",
    ),
    "Lung Lesion": (
        "There is a {size} pulmonary nodule {in}.",
        "A rounded nodule is seen {in}.",
        "There is a nodular lesion {in}.",
    ),
    "Pleural Effusion": (
        "There [is a|are] {size} {side} pleural [effusion|effusions].",
        "{size} {side} pleural [effusion is|effusions are] present.",
        "Blunting of the costophrenic [angle|angles] with {size} {side} pleural [effusion|effusions].",
    ),
    "Pneumothorax": (
        "There is a {size} {side} pneumothorax.",
        "{size} {side} pneumothorax with a visible pleural line.",
        "A {side} pneumothorax is present.",
    ),
    "Pleural Other": (
        "There is {side} pleural thickening.",
        "{side} pleural thickening is noted along the lateral chest wall.",
        "Pleural scarring {in}.",
    ),
    "Cardiomegaly": (
        "The heart is enlarged.",
        "There is cardiomegaly.",
        "The cardiac silhouette is enlarged.",
        "Heart size is increased.",
    ),
    "Enlarged Cardiomediastinum": (
        "The mediastinum is widened.",
        "There is widening of the mediastinal contour.",
        "The cardiomediastinal silhouette is widened.",
    ),
    "Fracture": (
        "There is a {side} rib fracture.",
        "A displaced {side} rib fracture is present.",
        "Fracture of a {side} posterior rib.",
    ),
    "Support Devices": (
        "Support devices are in place.",
        "Lines and tubes are in place.",
    ),
}

DEVICES: dict[str, tuple[str, ...]] = {
    "": POSITIVE["Support Devices"],
    "tube": ("An endotracheal tube is in place.", "The endotracheal tube ends above the carina."),
    "line": ("A central venous catheter ends in the superior vena cava.", "A {side} central venous line is in place."),
    "gastric": ("A nasogastric tube courses below the diaphragm.", "An enteric tube is in place."),
    "pacemaker": ("A {side} chest pacemaker is in place.", "There is a {side} cardiac pacemaker with intact leads."),
    "leads": ("Monitoring leads overlie the chest.", "ECG leads are in place."),
}

UNCERTAIN: dict[str, tuple[str, ...]] = {
    "Lung Opacity": ("There may be faint opacity {in}.", "Possible subtle opacity {in}."),
    "Consolidation": ("Possible consolidation {in}.", "Early consolidation {in} cannot be excluded."),
    "Pneumonia": ("Early pneumonia {in} cannot be excluded.", "Subtle changes {in} may represent pneumonia."),
    "Atelectasis": ("Possible minimal atelectasis {in}.", "Probable atelectasis {in}."),
    "Edema": ("Mild pulmonary edema cannot be excluded.", "Possible mild pulmonary edema."),
    "Lung Lesion": ("Possible pulmonary nodule {in}.", "A nodule {in} cannot be excluded."),
    "Pleural Effusion": (
        "Possible small {side} pleural [effusion|effusions].",
        "A trace {side} pleural effusion cannot be excluded.",
    ),
    "Pneumothorax": ("A small {side} pneumothorax cannot be excluded.", "Possible tiny {side} pneumothorax."),
    "Pleural Other": ("Possible {side} pleural thickening.", "There may be {side} pleural thickening."),
    "Cardiomegaly": ("The heart is borderline enlarged.", "Possible mild cardiomegaly."),
    "Enlarged Cardiomediastinum": ("The mediastinum may be widened.", "Possible mediastinal widening."),
    "Fracture": ("Possible {side} rib fracture.", "A {side} rib fracture cannot be excluded."),
    "Support Devices": ("Possible line or tube, incompletely seen.",),
}

NEGATIVE: dict[str, tuple[str, ...]] = {
    "Lung Opacity": ("The lungs are clear.", "No pulmonary opacity.", "The lungs are clear bilaterally."),
    "Consolidation": (
        "No focal consolidation.",
        "There is no airspace consolidation.",
        "No lobar consolidation is seen.",
    ),
    "Pneumonia": ("No evidence of pneumonia.", "There is no pneumonia."),
    "Atelectasis": ("No atelectasis.", "There is no atelectasis."),
    "Edema": ("No pulmonary edema.", "There is no pulmonary edema.", "No evidence of edema."),
    "Lung Lesion": ("No pulmonary nodule or mass.", "There is no suspicious pulmonary nodule."),
    "Pleural Effusion": ("No pleural effusion.", "There is no pleural effusion.", "No evidence of pleural effusion."),
    "Pneumothorax": ("No pneumothorax.", "There is no pneumothorax.", "No evidence of pneumothorax."),
    "Pleural Other": ("No pleural thickening.", "There is no pleural thickening."),
    "Cardiomegaly": (
        "The heart is normal in size.",
        "Heart size is normal.",
        "The cardiac silhouette is not enlarged.",
    ),
    "Enlarged Cardiomediastinum": ("The mediastinal contour is normal.", "The mediastinum is not widened."),
    "Fracture": ("No acute fracture.", "No displaced rib fracture.", "There is no fracture."),
    "Support Devices": ("No support devices.", "No lines or tubes are seen."),
}

IMPRESSION: dict[str, tuple[str, ...]] = {
    "Lung Opacity": ("Airspace opacity {in}.", "Pulmonary opacity {in}."),
    "Consolidation": ("Consolidation {in}.", "Airspace consolidation {in}."),
    "Pneumonia": ("Pneumonia {in}.", "Findings consistent with pneumonia {in}."),
    "Atelectasis": ("Atelectasis {in}.", "{size} atelectasis {in}."),
    "Edema": ("Pulmonary edema.", "{size} pulmonary edema."),
    "Lung Lesion": ("Pulmonary nodule {in}; recommend CT.", "Nodule {in}."),
    "Pleural Effusion": ("{size} {side} pleural [effusion|effusions].", "{side} pleural [effusion|effusions]."),
    "Pneumothorax": ("{size} {side} pneumothorax.", "{side} pneumothorax."),
    "Pleural Other": ("{side} pleural thickening.",),
    "Cardiomegaly": ("Cardiomegaly.", "Enlarged heart."),
    "Enlarged Cardiomediastinum": ("Widened mediastinum.", "Mediastinal widening."),
    "Fracture": ("{side} rib fracture.", "Rib fracture {in}."),
}

WHOLE_NORMAL: tuple[str, ...] = (
    "No acute cardiopulmonary abnormality.",
    "No acute cardiopulmonary process.",
    "Normal chest radiograph.",
    "No acute disease.",
)

# How often a report says that a finding is not there.
MENTIONED: dict[str, float] = {
    "Support Devices": 0.02, "Lung Opacity": 0.55, "Consolidation": 0.75, "Pneumonia": 0.08, "Atelectasis": 0.04,
    "Edema": 0.25, "Lung Lesion": 0.12, "Pleural Effusion": 0.95, "Pneumothorax": 0.95, "Pleural Other": 0.02,
    "Cardiomegaly": 0.90, "Enlarged Cardiomediastinum": 0.45, "Fracture": 0.25,
}  # fmt: skip
