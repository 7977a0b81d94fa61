import os
import sys

os.execvp("node", ["node", "/app/app.cjs", *sys.argv[1:]])
