"""The wider scheme: the 17 findings under which the IU reports were indexed by hand, and how reports word them.

The indexers took down what a report states or calls probable, old or new, and neither what it denies nor what only
"may be". Their terms are narrower than the words suggest: degenerative change alone is no finding (osteophytes,
spondylosis, scoliosis, kyphosis are), a nodular opacity is an opacity, bullous disease is not emphysema, and the
calcification of atherosclerosis counts as atherosclerosis. XXXX stands for words that were removed from those reports.
"""

import re

from ml_core.contracts import FindingState
from ml_core.data.labeller_scheme import Scheme, compiled

_HEART = (
    r"\b(heart( size)?|heart shadow|cardiac( silhouette| size| contours?| shadow)?|"
    r"cardio ?mediastin\w+( silhouette| contours?)?|cardio ?pericardial silhouette)"
)
_BIG = r"(enlarged?|increased?|prominent|large|borderline|generous)"
_BIGNESS = r"(enlargement|prominence|increase) (of|in) (the )?(\w+ )?"
_VESSELS = r"(pulmonary vascula\w+|vascula\w+|pulmonary (veins?|venous|vessels?))"

_MENTIONS = {
    "cardiomegaly": rf"cardiomegaly|cardiac enlargement|{_BIGNESS}{_HEART}|"
    rf"\b{_BIG} (and \w+ )?{_HEART}|{_HEART}[^.;,]{{0,40}}?\b{_BIG}\b",
    "atelectasis": r"atelecta\w+|\bcollaps(e|ed)\b",
    "opacity": r"opacit(y|ies)|opacification|infiltrat(es?|ion)\b|air ?space disease|densit(y|ies)\b|haz(y|iness)\b|"
    r"\bdense (\w+ ){0,4}nodules?",
    "consolidation or pneumonia": r"consolidat\w+|pneumonias?\b|pneumonic",
    "oedema or congestion": r"o?edema\b|congestion|engorge\w+|congestive|(volume|fluid) overload|"
    r"venous hypertension|cephali[sz]ation|kerley|"
    rf"\bb[- ]lines|(prominen(t|ce)|engorged|congested)[^.;,]{{0,25}} {_VESSELS}|"
    rf"{_VESSELS} (is |are |appears? )?(\w+ )?(prominen(t|ce)|engorged)",
    "pleural effusion": r"effusions?|pleural fluid",
    "pneumothorax": r"(hydro|ha?emo)?pneumothora(x|ces)|pleural air",
    "nodule or mass": r"nodules?\b|\bmass(es|[- ]?like)?\b(?! effect)",
    "granuloma or calcification": r"granulom\w+|\bcalcif\w+|\bcalcific\b",
    "scarring": r"\bscar(s|red|ring)?\b|fibro(sis|tic)|cicatri\w+",
    "emphysema or COPD": r"emphysem\w*|\bcopd\b|obstructive (pulmonary|lung|airways?)( \w+)? ?disease",
    "fracture": r"fractures?\b|fractured",
    "degenerative spine": r"(osteo|syndesmo)phyt\w+|spondyl(osis|otic)|\w*scolio(sis|tic)|kypho(sis|tic)|spurring|"
    r"(dextro|levo)[ -]?(curvature|convex)|(spine|spinal|thoraco\w*|rightward|leftward) curvature",
    # A "tip" behind a removed word is a line's or a port's; "XXXX-a-XXXX" was a port-a-cath.
    "device": r"\b(catheters?|tub(es?|ing)|pacemakers?|clips|stents?|picc|ports?|devices?|leads?|a?icd|defibrillators?|"
    r"prosthe\w+|valves?|wires|hardware|mediport|(xxxx|port)-a-(xxxx|cath\w*)|anchors?|internal fixation|"
    r"(neuro)?stimulators?|occluder|tracheostomy|surgical xxxx|markers)\b|"
    r"\b(central|venous|arterial|picc|ij|jugular|subclavian|infusion) (venous )?(access )?lines?\b|"
    r"\blines? (and|or) tubes?|xxxx[^.;]{0,40}\btip\b",
    "aortic atherosclerosis": r"atherosclero\w+",
    "hiatal hernia": r"hiat(al|us) hernias?",
}

_LOOKALIKES = {
    "opacity": r"(bone|bony|sclerotic|osseous|cortical) densit(y|ies)",
    "oedema or congestion": r"(soft tissue|subcutaneous|cutaneous) o?edema",
    "pleural effusion": r"(pericardial|joint|knee|elbow) effusions?",
    "granuloma or calcification": r"atherosclero\w+[^.;]{0,25}calcif\w+|calcif\w+[^.;]*atherosclero\w+|"
    r"non[- ]calcified",
    "scarring": r"cystic fibrosis",
    "emphysema or COPD": r"subcutaneous emphysema",
    "fracture": r"catheter fracture",
    # Osteophytes of a joint, in a report on more than the chest.
    "degenerative spine": r"^.*(compartment|acetabul|femoral|knee|hip\b).*",
    "device": r"cholecystectomy clips|breast prosthe\w+",
}
# Abnormal, indexed under terms that are none of the 17: such a study is not "normal".
_OTHER = re.compile(
    r"crowding|markings|tortuo\w+|ecta(tic|sia)|unfold\w+|deformit\w+|degenerative|hyperinflat\w+|hyperexpan\w+|"
    r"(low|increased|decreased|diminished) lung volumes|lung volumes[^.;]{0,25}\blow|hypoventilat\w+|hypoinflat\w+|"
    r"blunting|thickening|eventration|elevat\w+|osteopeni\w+|"
    r"foreign bod\w+|sutures?|implants|\bfat\b|lucenc\w+|hyperlucent|prominen\w+|curvature|arthrit\w+|pneumoperitoneum|"
    r"hernia|wedging|adenopathy|widen\w+|mastectomy|postsurgical|volume loss|loss of (lung )?volume|"
    r"irregular\w+|bullet|demineraliz\w+"
)

INDEXED = Scheme(
    no_finding="no finding",
    mentions=compiled(_MENTIONS),
    lookalikes=compiled(_LOOKALIKES),
    other=_OTHER,
    probable=FindingState.POSITIVE,
)
