"""An inference engine and a meter for llenergymeasure, as small as they can be and still be honest."""
