"""Where requests wait: admission, batch formation, preparation of images, running and answering."""
