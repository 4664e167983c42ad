"""Finding faces in photos and cutting them out as FER-2013 frames them."""
