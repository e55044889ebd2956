"""Classical analyses of spectral images, one file each; :mod:`vitreous.analysis.table` lists them.

Each takes a scene and gives a :class:`~vitreous.analysis.result.Result`: a lazy image on the scene's grid, what was found,
and the spectra that belong to it. Statistics are gathered window by window, so memory does not grow with the scene.
"""
