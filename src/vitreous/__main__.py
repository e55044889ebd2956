"""``python -m vitreous``: the same as the console command."""

from vitreous.cli.main import run

if __name__ == "__main__":
    run()
