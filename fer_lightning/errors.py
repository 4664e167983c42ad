"""The one exception type that means "you can fix this"."""


class UserError(Exception):
    """Bad input or configuration.

    The message is one line that names the file, row or key, says what was found and what to do. The entry points
    print it without a traceback and exit with code 1; everything else that is raised is a defect of this project.
    """
