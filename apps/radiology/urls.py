"""URLs of the radiology app."""

from django.urls import path, register_converter

from apps.radiology.views import dicomweb, reading, search, upload


class UidConverter:
    """A DICOM UID."""

    regex = r"[0-9.]{1,64}"

    def to_python(self, value: str) -> str:
        return value

    def to_url(self, value: str) -> str:
        return value


register_converter(UidConverter, "uid")

_IMAGE = "dicomweb/studies/<uid:study>/series/<uid:series>/instances/<uid:instance>/"

app_name = "radiology"
urlpatterns = [
    path("", reading.reading_list, name="reading_list"),
    path("search/", search.search, name="search"),
    path("upload/", upload.upload, name="upload"),
    path("batches/", upload.batch_create, name="batch_create"),
    path("batches/<uuid:uid>/", upload.batch, name="batch"),
    path("batches/<uuid:uid>/files/", upload.batch_files, name="batch_files"),
    path("quarantine/", upload.quarantine, name="quarantine"),
    path("quarantine/<int:pk>/dismiss/", upload.dismiss, name="dismiss"),
    path("studies/<uid:uid>/", reading.study, name="study"),
    path("studies/<uid:uid>/draft/", reading.draft_state, name="draft_state"),
    path("studies/<uid:uid>/draft/again/", reading.draft_again, name="draft_again"),
    path("studies/<uid:uid>/report/", reading.report_save, name="report_save"),
    path("studies/<uid:uid>/sign/", reading.report_sign, name="report_sign"),
    path("studies/<uid:uid>/verify/", reading.verify, name="verify"),
    path("studies/<uid:uid>/print/", reading.study_print, name="study_print"),
    path(_IMAGE + "metadata", dicomweb.metadata, name="metadata"),
    path(_IMAGE + "frames/<int:number>", dicomweb.frames, name="frames"),
    path(_IMAGE + "thumbnail", dicomweb.thumbnail, name="thumbnail"),
]
