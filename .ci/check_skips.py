"""Fail if a JUnit file holds a skipped test for any reason but a missing GPU."""

import sys
import xml.etree.ElementTree as ET

ALLOWED = "no GPU"

failed = False
for path in sys.argv[1:]:
    for case in ET.parse(path).iter("testcase"):
        for skipped in case.iter("skipped"):
            reason = skipped.get("message", "")
            if ALLOWED not in reason:
                failed = True
                print(f"skipped: {case.get('classname')}::{case.get('name')}: {reason}")
if failed:
    sys.exit(f"A test may be skipped only for a reason that says '{ALLOWED}'.")
print(f"No test was skipped for a reason other than '{ALLOWED}'.")
