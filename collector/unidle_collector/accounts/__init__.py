"""The account of every GPU instant: booked as it comes, kept on disk, added up by any key."""
