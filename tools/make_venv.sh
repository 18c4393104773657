#!/bin/sh
# Makes the virtual environment $1 with $PYTHON, or else with the newest Python on PATH that will do. Leaves a good one
# alone. Whatever is wrong is said in a sentence, with what to do about it.
set -eu
venv=$1
new_enough='import sys; sys.exit(sys.version_info < (3, 11))'
can_make_venv='import ensurepip, venv'
version='import platform; print(platform.python_version())'

if "$venv/bin/python" -c "$new_enough" 2>/dev/null && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
else
    set -- python3.14 python3.13 python3.12 python3.11 python3 python
fi
too_old='' without_venv=''
for python in "$@"; do
    found=$("$python" -c "$version" 2>/dev/null) || continue  # not there, or a shim with nothing behind it
    if ! "$python" -c "$new_enough"; then
        too_old=${too_old:-"$python is $found"}
    elif ! "$python" -c "$can_make_venv" 2>/dev/null; then
        without_venv=${without_venv:-"$python"}
    else
        echo "Making $venv with $python ($found)."
        exec "$python" -m venv --clear "$venv"
    fi
done

if [ -n "$without_venv" ]; then
    minor=$("$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "$without_venv cannot make a virtual environment: on Debian and Ubuntu, apt-get install python$minor-venv." >&2
elif [ -n "$too_old" ]; then
    echo "paged_core needs Python 3.11 or newer, and $too_old: install a newer one, or name it: make PYTHON=python3.12 ..." >&2
elif [ -n "${PYTHON:-}" ]; then
    echo "paged_core needs Python 3.11 or newer, and PYTHON=$PYTHON is not a Python that runs." >&2
else
    echo "paged_core needs Python 3.11 or newer, and none is on PATH: install one, or name it: make PYTHON=/path/to/python3 ..." >&2
fi
exit 1
