"""The database itself refuses to change or delete a signed report or a signature."""

from django.db import migrations

REPORT = "a signed report is immutable"
SIGNATURE = "a signature is immutable"

SQLITE = [
    "CREATE TRIGGER radiology_report_final_no_update BEFORE UPDATE ON radiology_report WHEN OLD.state = 'final' "
    f"BEGIN SELECT RAISE(ABORT, '{REPORT}'); END",
    "CREATE TRIGGER radiology_report_final_no_delete BEFORE DELETE ON radiology_report WHEN OLD.state = 'final' "
    f"BEGIN SELECT RAISE(ABORT, '{REPORT}'); END",
    # INSERT OR REPLACE deletes without firing the trigger above.
    "CREATE TRIGGER radiology_report_final_no_replace BEFORE INSERT ON radiology_report "
    "WHEN EXISTS (SELECT 1 FROM radiology_report WHERE state = 'final' AND (id = NEW.id OR study_id = NEW.study_id)) "
    f"BEGIN SELECT RAISE(ABORT, '{REPORT}'); END",
    "CREATE TRIGGER radiology_signature_no_update BEFORE UPDATE ON radiology_reportsignature "
    f"BEGIN SELECT RAISE(ABORT, '{SIGNATURE}'); END",
    "CREATE TRIGGER radiology_signature_no_delete BEFORE DELETE ON radiology_reportsignature "
    f"BEGIN SELECT RAISE(ABORT, '{SIGNATURE}'); END",
    "CREATE TRIGGER radiology_signature_no_replace BEFORE INSERT ON radiology_reportsignature "
    "WHEN EXISTS (SELECT 1 FROM radiology_reportsignature WHERE id = NEW.id OR report_id = NEW.report_id) "
    f"BEGIN SELECT RAISE(ABORT, '{SIGNATURE}'); END",
]
POSTGRESQL = [
    f"""CREATE FUNCTION radiology_report_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION '{REPORT}' USING ERRCODE = 'restrict_violation'; END $$""",
    f"""CREATE FUNCTION radiology_signature_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION '{SIGNATURE}' USING ERRCODE = 'restrict_violation'; END $$""",
    "CREATE TRIGGER radiology_report_final BEFORE UPDATE OR DELETE ON radiology_report "
    "FOR EACH ROW WHEN (OLD.state = 'final') EXECUTE FUNCTION radiology_report_refuse()",
    "CREATE TRIGGER radiology_signature_no_change BEFORE UPDATE OR DELETE ON radiology_reportsignature "
    "FOR EACH ROW EXECUTE FUNCTION radiology_signature_refuse()",
]
SQLITE_BACK = [
    "DROP TRIGGER radiology_signature_no_replace",
    "DROP TRIGGER radiology_signature_no_delete",
    "DROP TRIGGER radiology_signature_no_update",
    "DROP TRIGGER radiology_report_final_no_replace",
    "DROP TRIGGER radiology_report_final_no_delete",
    "DROP TRIGGER radiology_report_final_no_update",
]
POSTGRESQL_BACK = [
    "DROP TRIGGER radiology_signature_no_change ON radiology_reportsignature",
    "DROP TRIGGER radiology_report_final ON radiology_report",
    "DROP FUNCTION radiology_signature_refuse()",
    "DROP FUNCTION radiology_report_refuse()",
]


def run(schema_editor, statements):
    vendor = schema_editor.connection.vendor
    if vendor not in statements:
        raise NotImplementedError(f"no triggers for {vendor}")
    for statement in statements[vendor]:
        schema_editor.execute(statement)


def guard(apps, schema_editor):
    run(schema_editor, {"sqlite": SQLITE, "postgresql": POSTGRESQL})


def unguard(apps, schema_editor):
    run(schema_editor, {"sqlite": SQLITE_BACK, "postgresql": POSTGRESQL_BACK})


class Migration(migrations.Migration):
    dependencies = [("radiology", "0001_initial")]
    operations = [migrations.RunPython(guard, unguard)]
