"""What the pages show, as pure functions of the collector's records: no streamlit in here."""
