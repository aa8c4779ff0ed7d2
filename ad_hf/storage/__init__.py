"""Where bytes lie: files and folders, here or elsewhere, repositories on the Hub, and cards."""
