"""Makes the package a command."""

from jaxpto.command import leave
from jaxpto.free_energy import main

leave(main())
