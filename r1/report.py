def write_report(root):
    pass
