from fusion3d.cli import run

if __name__ == "__main__":
    raise SystemExit(run("audit_planner"))
