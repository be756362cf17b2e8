"""Makes the package a command."""

import sys

from jaxpto.free_energy import main

sys.exit(main())
