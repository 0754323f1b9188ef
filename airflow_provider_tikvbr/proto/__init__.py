"""Messages of PD and TiKV, generated from ``proto/`` by ``make proto``, and the table of their methods."""
