"""The errors that the command line turns into one line and an exit code."""


class UserError(Exception):
    """Something the user can mend: a missing folder, a bad config value, a broken shard.

    The message is one line that names the file, sample or config key and says what to do.
    The command line prints it without a traceback and exits with code 2.
    """
