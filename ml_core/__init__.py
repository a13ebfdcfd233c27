"""The engine: no Django, no Celery; importing this package alone costs nothing."""
