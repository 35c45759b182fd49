"""Host agent: attests this machine, asks for the keys of its VMs, runs them encrypted."""
