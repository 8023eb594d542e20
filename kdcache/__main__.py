"""`python -m kdcache`: the same command as `kdcache`."""

from kdcache.cli.main import main

if __name__ == "__main__":
    main()
