"""The collector: takes rows, accounts every GPU instant, finds what is lost and says what to do."""
