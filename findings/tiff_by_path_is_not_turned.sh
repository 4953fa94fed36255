#!/usr/bin/env bash
# Pillow turns a TIFF by its orientation, but for an uncompressed one of a single channel that is opened by its path.
#
# Version    pillow 13.0.0, numpy 2.4.1, Python 3.11.
# Statement  an image of 6 columns and 4 rows with orientation 6 (a quarter turn), Image.open(...), then load().
# Expected   the same pixels, turned, whether a path or a file object is opened, and a size that load() leaves alone.
# Seen       modes L and I;16, uncompressed, by path: size (4, 6), after load() (6, 4), pixels not turned, and the tag
#            is gone, so that ImageOps.exif_transpose does nothing either. By file object, or with LZW, or of three
#            channels: (4, 6) throughout, turned.
# Why        by path such a file is mapped into memory, and that way of loading leaves out the turn.
# For users  a folder of grey TIFFs is read sideways, and no size or tag shows it. Open a file object.
# Exit       0 while this is so, 1 if the behaviour changes. Run: bash findings/tiff_by_path_is_not_turned.sh (1 minute)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "pillow==${PILLOW:-13.0.0}" "numpy==2.4.1"
cat > "$folder/case.py" <<'CASE'
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ORIENTATION = 274
grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
arrays = {"L": grey, "I;16": grey.astype(np.uint16), "RGB": np.stack([grey] * 3, -1)}
turned = {}
for mode, array in arrays.items():
    for compression in (None, "tiff_lzw"):
        image = Image.fromarray(array)
        exif = image.getexif()
        exif[ORIENTATION] = 6
        path = Path(sys.argv[1]) / f"{image.mode.replace(';', '')}-{compression}.tif"
        image.save(path, exif=exif, compression=compression)
        for way in ("path", "file"):
            with Image.open(path if way == "path" else path.open("rb")) as opened:
                before = opened.size
                opened.load()
                pixels = np.asarray(opened)
                wanted = np.rot90(array, -1)
                same = pixels.shape == wanted.shape and bool((pixels == wanted).all())
                turned[mode, compression, way] = same
                tag = opened.getexif().get(ORIENTATION)
                print(f"{mode:5} {str(compression):9} {way:5} {before} -> {opened.size} tag {tag} turned {same}")
wrong = {case for case, same in turned.items() if not same}
same = wrong == {("L", None, "path"), ("I;16", None, "path")}
sys.exit("the behaviour has changed" if not same else print("by path they are not turned"))
CASE
"$folder/env/bin/python" "$folder/case.py" "$folder"
