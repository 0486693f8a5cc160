"""Building blocks of sources that turn tables of records into MEDS."""
