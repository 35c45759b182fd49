"""The trusted key provider: releases keys to attested hosts for VMs that were placed on them."""
