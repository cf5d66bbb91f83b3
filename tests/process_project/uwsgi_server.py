"""uWSGI as a module: `python -m tests.process_project.uwsgi_server --http-socket ...`."""

import pyuwsgi

pyuwsgi.run()
