"""The scheme of the 14 CheXpert findings: how reports word them, what only looks so, what denies them unnamed."""

import re

from ml_core.data.findings import NO_FINDING
from ml_core.data.labeller_scheme import Scheme, compiled

_MENTIONS = {
    "Enlarged Cardiomediastinum": r"widen(ed|ing)[^.;]{0,25}mediastin\w*|mediastin\w*[^.;]{0,25}widen(ed|ing)|"
    r"(enlarged|prominent) (cardio)?mediastin\w+|mediastinal (enlargement|mass)",
    "Cardiomegaly": r"cardiomegaly|(enlarged|increased|large) (heart|cardiac silhouette|cardiac)|cardiac enlargement|"
    r"(heart|cardiac silhouette|cardiac size|cardiac contour|cardiac shadow|cardiomediastinal silhouette)"
    r"( size)?[^.;,]{0,30}?\b(enlarged|increased|prominent|large)|enlargement of the (heart|cardiac)",
    "Lung Opacity": r"opacit(y|ies)|opacification|infiltrates?\b|air ?space disease|densit(y|ies)\b|haziness|"
    r"hazy\b|interstitial markings",
    "Lung Lesion": r"nodules?\b|\bmass(es)?\b(?! effect)|neoplasm|\btumou?r|metasta(sis|ses)|"
    r"(nodular|lung|pulmonary) lesions?\b",
    "Edema": r"o?edema\b|vascular congestion|pulmonary congestion|congestive (heart )?failure|\bchf\b|"
    r"volume overload|cephalization|kerley|vascular (prominence|engorgement)|"
    r"(prominent|engorged) (central )?(pulmonary )?vascula\w+",
    "Consolidation": r"consolidat\w+",
    "Pneumonia": r"pneumonia|pneumonic|pneumonitis",
    "Atelectasis": r"atelecta\w+|volume loss",
    "Pneumothorax": r"(hydro)?pneumothora(x|ces)",
    "Pleural Effusion": r"(?<!subpleural )effusions?|pleural fluid|hydropneumothorax",
    "Pleural Other": r"pleural(-| )(thickening|scarring|plaques?|calcification)|fibrothorax|thickening of the pleura",
    "Fracture": r"fractures?\b|fractured",
    "Support Devices": r"\b(tubes?|catheters?|pacemakers?|icd|defibrillator|picc|port-?a-?cath|mediport|"
    r"sternotomy|wires|leads|stents?|clips|"
    r"devices?|prosthe\w+|hardware|valve replacement|(central|venous) lines?|lines? (and|or) tubes?|"
    r"line or tube|introducer|sutures?)\b",
}  # fmt: skip

# Words that belong to an anatomy or a phrase and are no mention.
_IGNORE = re.compile(
    r"no acute (bony|osseous) (abnormality|findings?)|bone densit(y|ies)|soft tissue densit(y|ies)|"
    r"calcified (densit(y|ies)|granuloma\w*)|"
    r"pericardial effusions?|(pulmonary|lung) markings are normal|(low|decreased|increased) bone density|nodal\b|"
    r"nipple shadows?|lines? of the|epicardial|degenerative lesions?|nodular calcifi\w+|lytic|"
    r"calcified[^.;,]{0,20}(densit(y|ies)|opacit(y|ies))"
)
# Statements that deny a finding without naming it.
_NORMAL = {
    "Lung Opacity": re.compile(
        r"lungs? (fields )?(are|is|appear\w*|remain\w*)?\s*(otherwise |grossly |well-?expanded and |"
        r"well aerated and |symmetrically |"
        r"bilaterally |both |essentially |mostly )*clear|clear lungs|lungs:? clear|well-expanded and clear"
    ),
    "Cardiomegaly": re.compile(
        r"(heart|cardiac|cardiomediastinal|cardio mediastinal)[^.;]{0,60}\b(normal|unremarkable|within normal|"
        r"not enlarged|stable|negative)|"
        r"normal (heart|cardiac|cardiomediastinal)|upper limits of normal"
    ),
    "Enlarged Cardiomediastinum": re.compile(
        r"(cardio)?mediastin\w*[^.;]{0,60}\b(normal|unremarkable|not widened|within normal)|"
        r"normal (cardio)?mediastin\w*|"
        r"normal (heart|cardiac)[^.;]{0,20} mediastin\w*"
    ),
}  # fmt: skip

CHEXPERT = Scheme(
    no_finding=NO_FINDING,
    mentions=compiled(_MENTIONS),
    ignored=_IGNORE,
    normal=_NORMAL,
    beside=frozenset({"Support Devices"}),
)
