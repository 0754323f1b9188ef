"""The command ``tikvbr``: the engine for people at a terminal, spelled as tikv-br is."""
