"""Networks and objectives of the ehr workbench. Importing this imports no torch."""
