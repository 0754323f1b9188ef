"""The vault: one storage URL -> what TiKV is told, and how backups are read and written there."""
