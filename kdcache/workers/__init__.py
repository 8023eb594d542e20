"""Work on the blocks of stores by many: processes of this machine or the workers of a Dask cluster."""
