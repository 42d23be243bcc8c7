"""What here is no test: the script that makes the references, which needs torch."""

collect_ignore = ["make_references.py"]
