"""Makes the package a command."""

from jaxpto.console.command import leave
from jaxpto.free_energy.command import main

leave(main())
